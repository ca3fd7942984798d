"""VGG against depth, from scratch and seeded from configuration A (VGG paper, section 3.1).

    cnn-depth sweep vgg_depth
    cnn-depth sweep vgg_depth --seeds 5

scikit-learn's 1,797 digits, scaled to 32x32, stand in for ImageNet, and the networks have a quarter
of the paper's width. The recipe is the paper's: SGD with momentum 0.9, weight decay 5e-4, dropout
0.5, Gaussian weights (their deviation scaled to the width), inputs on the 0-255 scale less their
mean, the rate divided by ten when the validation error stalls. "seeded" nets start with A's
conv1_1, conv2_1, conv3_1, conv3_2 and fully connected layers, the rest fresh. Expect the deepest
nets to fail from scratch under these weights, and to train when seeded.
"""

from experiments import config as configs


def get_config(arg=None):
    config = configs.base()
    config.model = configs.model("vgg:A", width=0.25)
    config.data.update(name="digits", image_size=32, pad=2, normalise="per_channel")
    config.optimizer.weight_decay = 5e-4
    config.schedule.update(kind="plateau", lr=0.01, patience=3)
    config.train.update(batch_size=64, epochs=15.0, validate_every_epochs=1.0)
    return config


def sweep():
    yield "A", {"model.arch": "vgg:A"}
    for variant in ("B", "D", "E"):
        yield variant, {"model.arch": f"vgg:{variant}"}
        yield f"{variant} seeded", {"model.arch": f"vgg:{variant}", "seed_from": "A"}

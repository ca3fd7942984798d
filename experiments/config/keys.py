"""Every key that a config has, a line each: its default, what it means, and what it may be."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from cnn_arch import execution, seeding
from cnn_arch.registry import Bounds
from input_pipeline.sources import is_streamed


class Pairs(NamedTuple):
    """The parts of a tuple of pairs: a pattern of names and a value of type `second`."""

    second: Any
    meaning: str


class Identity(NamedTuple):
    """Whether a key is part of a run's identity."""

    when: str  # in words
    holds: Callable[[Mapping[str, Any]], bool]  # of a flat config


def given(key: str, *values: str) -> Identity:
    """A key counts where another key has one of these values."""
    return Identity(f"with {key}={'|'.join(values)}", lambda flat: flat[key] in values)


def both(first: Identity, second: Identity) -> Identity:
    """A key counts where both hold."""
    words = f"{first.when}, {second.when}"
    return Identity(words, lambda flat: first.holds(flat) and second.holds(flat))


ALWAYS = Identity("yes", lambda flat: True)
# Where and how a run executes, not what it computes; of `data.path` the file's content counts.
NEVER = Identity("no", lambda flat: False)
# Like NEVER, except for a run that ends by a line of its log.
ENDING = Identity("with train.until_error", lambda flat: flat["train.until_error"] > 0)
STREAMED = Identity("with encoded images", lambda flat: is_streamed(flat["data.name"]))
OWN = Identity(
    "unless inherited",
    lambda flat: not (flat["seeding.run"] and flat["seeding.normalise"] == "inherit"),
)
FITTED = ("pca_fitted", "pca_paper")  # colours whose constants are fitted to the training images
FITS = Identity(
    "with a mean or deviation of the images",
    lambda flat: (
        flat["data.normalise"] in ("per_pixel", "per_channel") or flat["data.divide_by_std"]
    ),
)
STATISTICS = Identity(
    f"{FITS.when} that is not inherited, or their colours",
    lambda flat: flat["data.colour"] in FITTED or (FITS.holds(flat) and OWN.holds(flat)),
)
SCALE = Identity(
    "unless encoded images have data.view=area",
    lambda flat: not STREAMED.holds(flat) or flat["data.view"] != "area",
)
AREA = both(STREAMED, given("data.view", "area"))
DECAYED = Identity("with optimizer.weight_decay", lambda flat: flat["optimizer.weight_decay"] > 0)
EPOCHS_COUNT = Identity("without train.steps", lambda flat: not flat["train.steps"])
BFLOAT16 = Identity("with model.dtype=bfloat16", lambda flat: flat.get("model.dtype") == "bfloat16")
SGD, SDLM = given("optimizer.kind", "sgd"), given("optimizer.kind", "sdlm")
BOXES = given("train.boxes", "single", "per_class")
STEPS, PLATEAU = given("schedule.kind", "steps"), given("schedule.kind", "plateau")
FACTOR = Identity(
    "with schedule.kind=plateau, or =steps without schedule.factors",
    lambda flat: PLATEAU.holds(flat) or (STEPS.holds(flat) and not flat["schedule.factors"]),
)
WARM_UP = Identity("with schedule.warmup", lambda flat: flat["schedule.warmup"] != "none")
UNTIL_STEP = Identity(
    "with schedule.warmup, without schedule.warmup_part",
    lambda flat: WARM_UP.holds(flat) and not flat["schedule.warmup_part"],
)

# High bounds lie far beyond whatever is useful, and catch slips of the hand before any work.
MOST = 2**31 - 1  # steps, images, seeds: as JAX counts
SIDE, BATCH, EPOCHS = 16384, 2**20, 1e6
PART = Bounds(0, 1, above=True, below=True)
SHARE = Bounds(0, 1)


@dataclass(frozen=True)
class Key:
    """One key of a config."""

    name: str  # dotted, as `--set` takes it
    default: Any  # its value in `base()`; a value has the default's type
    meaning: str  # what it does. Sizes are pixels, errors percent.
    choices: tuple[str, ...] = ()  # the words that it may be, where these are few
    bounds: Bounds | None = None  # of a number, and of each number in a tuple
    # Of a tuple that always has so many parts; a single number stands for all of them.
    length: int = 0
    parts: Any = None  # the type of a tuple's parts, where its default is empty; or its `Pairs`
    identity: Identity = ALWAYS  # whether it is part of a run's identity
    # Whether the key is newer than the identity's format, and its default is what runs did before.
    # The default is then no part of the identity, so that these runs keep their ids.
    added: bool = False
    hint: str = ""  # what to write instead of a number out of bounds

    @property
    def counts(self) -> str:
        """When it is part of a run's identity: `yes`, `no`, or where."""
        return self.identity.when + (", where not the default" if self.added else "")

    @property
    def values(self) -> str:
        """The values that it may have: its choices, or its type and bounds."""
        if self.choices:
            return ", ".join(self.choices)
        if isinstance(self.default, tuple):
            pairs = isinstance(self.part, Pairs)
            text = f"pairs of {self.part.meaning}" if pairs else f"tuple of {self.part.__name__}"
            text = f"{self.length} numbers" if self.length else text
            return f"{text}, each {self.bounds}" if self.bounds else text
        return str(self.bounds or type(self.default).__name__)

    @property
    def part(self) -> Any:
        """The type of a tuple's parts, or its `Pairs`."""
        return self.parts or type(self.default[0])


# fmt: off
_KEYS = (
    Key("seed", 0, "Weights, the order of images, views and dropout are drawn with this number.",
        bounds=Bounds(0, MOST)),
    Key("model.arch", "", "The architecture, family:variant. Its options are keys of model, too."),
    Key("model.precision", "default",
        "At which float32 is multiplied, in training and tests. default is the device's own: "
        "float32 on a CPU, TF32 on an NVIDIA GPU, one pass in bfloat16 on a TPU. high is TF32 and "
        "three passes; highest is float32 (on a TPU, six passes).",
        choices=execution.PRECISIONS, added=True),
    Key("data.name", "digits",
        "The data set: digits, mirrored_digits, placed_digits, npz, cifar10, cifar100, mnist, "
        "fashion_mnist, svhn, folder, ilsvrc, shards, voc or tfds:NAME."),
    Key("data.path", "", "The file or folder of a set that is read from there.", identity=NEVER),
    Key("data.split", 0.0,
        "Of a folder of classes without train and val: the share of each class that is the test. "
        "File names alone decide which images these are, not the seed. 0 is off.",
        bounds=Bounds(0, 0.9), added=True),
    Key("data.classes", (),
        "Names of the classes that are trained and tested on, two at least; none: all of the set.",
        parts=str, added=True),
    Key("data.boxes", "",
        "Where the boxes around the objects are: own (placed_digits, npz, and TFDS sets that have "
        "them), or a file or folder of annotations. Images without a box are then left out.",
        identity=NEVER, added=True),
    Key("data.box_part", 0.5,
        "The part of a box, at least, that a training view shows. Of an image's boxes, one of "
        "which so much is seen is drawn; views without such a box add nothing to the loss.",
        bounds=SHARE, identity=BOXES, added=True),
    Key("data.image_size", 32, "Side of the network's input: the crop of training and of tests.",
        bounds=Bounds(1, SIDE)),
    Key("data.S", (0, 0),
        "Short side of images in training, drawn from S[0]..S[1]; 0 is the crop's size.",
        bounds=Bounds(0, SIDE), length=2, identity=SCALE),
    Key("data.pad", 0, "Shifts: images are padded by this much, then cropped at random.",
        bounds=Bounds(0, SIDE)),
    Key("data.mirror", False, "Whether images are mirrored at random."),
    Key("data.frame", 0,
        "Of small sets: so many black pixels are put around each image, which is not scaled; 2 "
        "makes MNIST's 28 pixels the 32 that LeNet-5 sees.", bounds=Bounds(0, SIDE), added=True),
    Key("data.distort", 0.0,
        "Of small sets: this share of the training images is shown distorted by a random planar "
        "affine map (translation, scale, squeeze, shear), drawn anew in each pass.",
        bounds=SHARE, added=True),
    Key("data.view", "scale",
        "Of encoded images: a random crop at scale S, one of AlexNet's central square, or "
        "GoogLeNet's by area and aspect.", choices=("scale", "square", "area"), identity=STREAMED),
    Key("data.area", (0.08, 1.0), "View area: the share of the image, drawn from area[0]..area[1].",
        bounds=Bounds(0, 1, above=True), length=2, identity=AREA,
        hint="it is a share of the image, such as 0.08,1"),
    Key("data.aspect", (3 / 4, 4 / 3),
        "View area: width / height, drawn from aspect[0]..aspect[1].",
        bounds=Bounds(0.01, 100), length=2, identity=AREA),
    Key("data.colour", "none", "How the colours of training views of encoded images are changed.",
        choices=("none", "pca_public", *FITTED, "photometric", "photometric+pca_public"),
        identity=STREAMED),
    Key("data.normalise", "per_channel",
        "The mean that is taken off; gcn_zca whitens; lenet makes black -0.1 and white 1.175.",
        choices=("per_pixel", "per_channel", "fixed", "none", "gcn_zca", "lenet"), identity=OWN),
    Key("data.mean", (123.68, 116.779, 103.939),
        "The mean of data.normalise=fixed: R, G, B, as VGG's authors have it of ILSVRC.",
        bounds=Bounds(0, 255), length=3,
        identity=both(both(STREAMED, given("data.normalise", "fixed")), OWN)),
    Key("data.divide_by_std", False,
        "Whether images are divided by their deviation, one over all pixels.", identity=OWN),
    Key("data.statistics_images", 10000, "Encoded images that means are taken from; 0 is all.",
        bounds=Bounds(0, MOST), identity=both(STREAMED, STATISTICS)),
    Key("data.exif", False,
        "Whether encoded images are turned as their EXIF orientation says. ImageNet's published "
        "networks saw them as they are stored.", identity=STREAMED, added=True),
    Key("data.holdout", 0.1,
        "Part of the training set that is kept for the best checkpoint and the plateaus.",
        bounds=Bounds(0, 0.9)),
    Key("data.balanced", False,
        "Whether all classes are trained on as often as the most frequent one: in each pass, "
        "images of the others come several times.", added=True),
    Key("data.bad", "skip", "Files that are no images: skip them or raise an error.",
        choices=("skip", "raise"), identity=NEVER),
    Key("data.max_bad", 0.001, "Share of the images that may be skipped.",
        bounds=SHARE, identity=NEVER),
    Key("data.threads", 0, "Threads that decode images; 0 is one a core.",
        bounds=Bounds(0, 1024), identity=NEVER),
    Key("optimizer.kind", "sgd",
        "sgd, or sdlm: LeNet-5's stochastic diagonal Levenberg-Marquardt, which divides each "
        "weight's rate by optimizer.mu plus its second derivative.",
        choices=("sgd", "sdlm"), added=True),
    Key("optimizer.mu", 0.02, "sdlm: what is added to the second derivatives.",
        bounds=Bounds(1e-9, 1e9), identity=SDLM, added=True),
    Key("optimizer.patterns", 500, "sdlm: training images that second derivatives are taken from.",
        bounds=Bounds(1, MOST), identity=SDLM, added=True),
    Key("optimizer.momentum", 0.9, "sgd: the part of the velocity that stays at each step.",
        bounds=Bounds(0, 0.9999), identity=SGD),
    Key("optimizer.nesterov", False, "sgd: Nesterov's momentum.", identity=SGD),
    Key("optimizer.weight_decay", 1e-4, "L2, added to the gradient.", bounds=Bounds(0, 10)),
    Key("optimizer.decay", ("*kernel",),
        "Name patterns of the parameters that weight decay touches.",
        identity=DECAYED),
    Key("optimizer.lr_in_velocity", False,
        "Whether the rate is part of the velocity: v <- mu v - lr g, as in AlexNet's paper."),
    Key("optimizer.clip_norm", 0.0, "The largest global norm of the gradients; 0 is off.",
        bounds=Bounds(0, 1e9)),
    Key("optimizer.freeze", (),
        'Name patterns of the parameters that stay as they are, such as ("stage*",): their '
        "gradients are not computed. A batch normalisation whose scale and bias are both frozen "
        "keeps its running statistics, and is normalised with them in training too.", parts=str),
    Key("optimizer.rates", (),
        "((name pattern, factor), ...): what the rate is multiplied by for parameters that a "
        "pattern matches; of several, all.",
        bounds=Bounds(0, 1e4, above=True),
        parts=Pairs(int | float, "a pattern and a number (names, factor)"), added=True,
        hint="optimizer.freeze keeps parameters as they are"),
    Key("optimizer.unfreeze", (),
        "((name pattern, part), ...): parameters that a pattern matches stay as they are until "
        "this part of the training; of several, the last. A batch normalisation follows its "
        "batches meanwhile.",
        bounds=PART, parts=Pairs(int | float, "a pattern and a part of the training (names, part)"),
        added=True, hint="it is a part of the training: epoch 3 of 10 is 0.3"),
    Key("schedule.kind", "steps",
        "How the rate changes: never, at milestones, along a cosine, or where the error stalls.",
        choices=("constant", "steps", "cosine", "plateau")),
    Key("schedule.lr", 0.1, "The first rate after the warm-up.", bounds=Bounds(1e-12, 1e4)),
    Key("schedule.milestones", (0.5, 0.75),
        "steps: where the rate drops, as parts of the training.",
        bounds=PART, identity=STEPS,
        hint="they are parts of the training: epoch 30 of 90 is 30/90"),
    Key("schedule.factor", 0.1, "steps and plateau: what the rate is multiplied by at each drop.",
        bounds=PART, identity=FACTOR,
        hint="it is what the rate is multiplied by; schedule.kind=constant keeps a rate"),
    Key("schedule.factors", (),
        "steps: what schedule.lr is multiplied by from each milestone on, instead of by powers of "
        "schedule.factor; as many numbers as milestones.",
        bounds=Bounds(1e-9, 1e4), parts=float, identity=STEPS, added=True),
    Key("schedule.drops", 3, "plateau: the rate drops at most this often.",
        bounds=Bounds(0, 1000), identity=PLATEAU),
    Key("schedule.patience", 5,
        "plateau: validations without a better error before the rate drops.",
        bounds=Bounds(1, 1e6), identity=PLATEAU),
    Key("schedule.warmup", "none",
        "How training begins: at a constant lower rate, at a rate that rises linearly, or at a "
        "lower rate until the training error is below schedule.warmup_error.",
        choices=("none", "constant", "linear", "until_error")),
    Key("schedule.warmup_lr", 0.01, "The rate with which the warm-up begins.",
        bounds=Bounds(0, 1e4), identity=WARM_UP),
    Key("schedule.warmup_steps", 0,
        "The step at which the warm-up ends; of until_error, at latest (0: no end).",
        bounds=Bounds(0, MOST), identity=UNTIL_STEP),
    Key("schedule.warmup_part", 0.0,
        "The end of the warm-up as a part of the training; if not 0, it counts instead of "
        "schedule.warmup_steps.",
        bounds=Bounds(0, 1, below=True), identity=WARM_UP, added=True,
        hint="it is a part of the training: 5 epochs of 90 are 5/90"),
    Key("schedule.warmup_error", 80.0,
        "until_error: the training error below which the warm-up ends.",
        bounds=Bounds(0, 100, above=True, below=True),
        identity=given("schedule.warmup", "until_error")),
    Key("train.batch_size", 128, "Images of a step.", bounds=Bounds(1, BATCH)),
    Key("train.epochs", 10.0, "The length of the training in passes over the training images.",
        bounds=Bounds(0, EPOCHS),
        identity=EPOCHS_COUNT),
    Key("train.steps", 0,
        "The length of the training in steps; if not 0, it counts instead of train.epochs.",
        bounds=Bounds(0, MOST)),
    Key("train.until_error", 0.0,
        "If not 0, training ends where a line of the log has a lower training error: the mean "
        "over the train.log_every_epochs before it, in training.",
        bounds=Bounds(0, 100, below=True), added=True),
    Key("train.patience", 0,
        "If not 0, training ends after so many validations in a row without a lower error on the "
        "held-out images, or 100 minus the mean average precision where these may be of several "
        "classes. The best checkpoint is kept.", bounds=Bounds(0, 1e6), added=True),
    Key("train.loss", "network",
        "network: that of the network's paper, the soft-max cross-entropy as a rule. binary: each "
        "class for itself, the mean over classes of logistic cross-entropies. Tests tell the "
        "soft-max cross-entropy in both cases. Where an image may be of several classes "
        "(data.name=voc) it is binary, the mean over the n classes k that count of "
        "log(1 + exp(x_k)) - t_k x_k, for logits x and targets t of 1 or 0, or smoothed; tests "
        "tell it, too, and the mean average precision.",
        choices=("network", "binary"), added=True),
    Key("train.boxes", "none",
        "Whether the last layer says where the object is. single: one box, 4 numbers; per_class: a "
        "box a class. Errors are then of boxes that share at most half with the true one, over "
        "their union, and the loss is half the squared distance in units of the crop.",
        choices=("none", "single", "per_class"), added=True),
    Key("train.accumulate", 1, "Micro-batches of a step, over which gradients are averaged.",
        bounds=Bounds(1, BATCH)),
    Key("train.gradient_dtype", "model",
        "Of the gradients of weights and biases of a network in bfloat16, which devices exchange. "
        "model: bfloat16, as computed. float32: summed in float32, twice as many bytes, and on a "
        "GPU multiplied in TF32.",
        choices=("model", "float32"), identity=BFLOAT16, added=True),
    Key("train.dropout", True,
        "Whether training drops values, where the network has dropout. If not, it scales them as "
        "tests do.", added=True),
    Key("train.label_smoothing", 0.0, "The part of the target that is spread over all classes.",
        bounds=Bounds(0, 0.999)),
    # Dividing by 1 - ema^t, as Adam does, would average all steps of a short training, its bad
    # beginning too (measured: 4.4% against 2.8% on digits, 0.9999 over 219 steps).
    Key("train.ema", 0.0,
        "Decay of the averages of parameters and running statistics, which are then what is "
        "tested; 0 is off. After t steps the decay is at most (1 + t) / (10 + t), as in "
        "TensorFlow's ExponentialMovingAverage: until train.ema is reached, the average is of "
        "about the last tenth of the steps.", bounds=Bounds(0, 0.999999)),
    Key("train.steps_per_dispatch", 0,
        "Steps that the device makes at once; 0 is 1 on a CPU, where a scan is slow, else 32.",
        bounds=Bounds(0, 1e6), identity=NEVER),
    Key("train.scan", "auto",
        "Whether stages of equal blocks are compiled as a loop: compiled faster, slower steps.",
        choices=("auto", "always", "never"), identity=NEVER),
    Key("train.remat", False,
        "Whether the inner maps of stages are computed again for the gradients: less memory.",
        identity=NEVER),
    Key("train.deterministic", False, "On a GPU: the same bits each time, by slower kernels.",
        identity=NEVER),
    Key("train.log_every_epochs", 1.0, "Passes between two lines of the log.",
        bounds=Bounds(1e-9, EPOCHS), identity=ENDING),
    Key("train.log_gradients", False,
        "Whether each line of the log has the root mean square of the loss's gradient over each "
        "layer's weights. `cnn-depth inspect` draws them.", identity=NEVER),
    Key("train.validate_every_epochs", 1.0,
        "Passes between two tests on the images that are held out.", bounds=Bounds(1e-9, EPOCHS)),
    Key("test.Q", 0, "Short side of test images; 0 is the crop's size.", bounds=Bounds(0, SIDE)),
    Key("test.batch_size", 128, "Images that are tested at once.", bounds=Bounds(1, BATCH)),
    Key("test.curve_epochs", 0.0, "If not 0: passes between test errors that are only logged.",
        bounds=Bounds(0, EPOCHS), identity=NEVER),
    Key("test.curve_seen", False, "Whether the training images are tested too, each time.",
        identity=NEVER),
    Key("checkpoint.every_seconds", 60.0, "Seconds between checkpoints; 0 is off.",
        bounds=Bounds(0, 1e9), identity=NEVER),
    Key("checkpoint.every_steps", 0, "Steps between checkpoints; 0 is off.",
        bounds=Bounds(0, MOST), identity=NEVER),
    Key("seeding.run", "", "Set by `seed_from`: the run whose network seeds this one."),
    Key("seeding.weights", "", "Set by `seed_from`: the weights of that run, if it was imported."),
    Key("seeding.kind", "copy",
        "Layers that the seeding network lacks start fresh (copy) or as the identity (grow).",
        choices=seeding.KINDS),
    Key("seeding.mapping", (),
        "What is copied, ((old pattern, new pattern), ...); none: all of the same architecture, "
        "and of a shallower VGG what its paper copies.", parts=Pairs(str, "patterns (old, new)")),
    Key("seeding.classifier", "copy",
        "copy: the last layer too, and the classes must be the same in the same order; in_order: "
        "whatever they are called; fresh: not the last layer.",
        choices=("copy", "fresh", "in_order")),
    Key("seeding.normalise", "inherit",
        "inherit: mean, deviation, whitening and resizing of images are the seeding run's, whose "
        "network learnt with them, and data.normalise, data.mean and data.divide_by_std do not "
        "count. fit: as these say, from this run's own images.",
        choices=("inherit", "fit"), added=True),
)
# fmt: on
KEYS = {key.name: key for key in _KEYS}
DEFAULTS = {key.name: key.default for key in _KEYS}
EXECUTION = tuple(key.name for key in _KEYS if key.identity in (NEVER, ENDING))
# Newer keys, options of architectures among them, with what runs did before they were there. These
# values are no part of the identity.
ADDED: dict[str, Any] = {
    **{key.name: key.default for key in _KEYS if key.added},
    "model.hidden": 4096,
    "model.head": "average",
    "model.head_dropout": 0.0,
    "model.inverted_dropout": True,
    "model.first_scale": 1.0,
}


def base() -> ConfigDict:
    """Every key that a config has, with its default; `model` is to be filled with `model()`."""
    nested: dict[str, Any] = {}
    for name, default in DEFAULTS.items():
        part, _, last = name.rpartition(".")
        (nested.setdefault(part, {}) if part else nested)[last] = default
    return ConfigDict(nested).lock()


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"train.batch_size": 128, ...}` of a config or a nested dict."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, (dict, ConfigDict)):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def identity_part(config: ConfigDict) -> dict[str, Any]:
    """The keys of a config that can change a run's result, flat and ready for JSON."""
    flat = flatten(config)
    crop = flat["data.image_size"]
    for name, usual in (("data.S", (0, 0)), ("test.Q", 0)):  # two spellings of the crop's size
        if flat[name] == (crop if usual == 0 else (crop, crop)):
            flat[name] = usual
    complete = {**DEFAULTS, **flat}
    skip = {name for name, key in KEYS.items() if not key.identity.holds(complete)}
    skip.add("model.folder")  # where a user's network lies; `model.source` is what it is
    skip |= {name for name, usual in ADDED.items() if flat.get(name) == usual}
    return {name: value for name, value in sorted(flat.items()) if name not in skip}


def inherits(config: ConfigDict) -> bool:
    """Whether a config's network sees images as the one that seeds it did."""
    return not OWN.holds(flatten(config))

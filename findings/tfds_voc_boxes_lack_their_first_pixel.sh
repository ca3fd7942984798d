#!/bin/bash
# tensorflow-datasets 4.9.10 divides the boxes of PASCAL VOC's XML by the image's width and height as
# they are. VOC counts pixels from 1, and a box's last pixel belongs to it (the development kit's
# readme: "the top-left pixel in the image has coordinates (1,1)"; its evaluation takes max - min + 1
# as a side). So of each box the first row and the first column are lost: an object that fills an image
# of 500x375 begins at 1/375 and 1/500, not at 0, and one of a single pixel has no area. The IoU of a
# box of 10x10 pixels as TFDS has it with the box that VOC means is 81 / 100.
#
# Seen: "0.002667 0.002000 1.000000 1.000000" (ymin, xmin, ymax, xmax), "area 0.0" and "iou 0.81".
# The script fails where that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow-datasets==4.9.10 tensorflow-cpu==2.21.0
cat > "$folder/read.py" <<'PYTHON'
import pathlib
import sys

from tensorflow_datasets.object_detection import voc

OBJECT = """<object><name>cat</name><pose>Left</pose><truncated>0</truncated>
<difficult>0</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax>
</bndbox></object>"""
BOXES = (1, 1, 500, 375), (20, 30, 20, 30), (101, 101, 110, 110)
file = pathlib.Path(sys.argv[1]) / "000001.xml"
objects = "".join(OBJECT.format(*box) for box in BOXES)
size = "<size><width>500</width><height>375</height><depth>3</depth></size>"
file.write_text(f"<annotation>{size}{objects}</annotation>")
whole, pixel, ten = (one["bbox"] for one in voc._get_example_objects(str(file)))
print(*(f"{edge:.6f}" for edge in whole))
print("area", (pixel.xmax - pixel.xmin) * (pixel.ymax - pixel.ymin))
# Both begin and end in the box that VOC means, 100 to 110 between pixels, each way.
area = (ten.xmax - ten.xmin) * 500 * (ten.ymax - ten.ymin) * 375
print("iou", round(area / 100, 2))
PYTHON
seen=$("$folder/venv/bin/python" "$folder/read.py" "$folder" 2> /dev/null)
echo "$seen"
[ "$seen" = "0.002667 0.002000 1.000000 1.000000
area 0.0
iou 0.81" ]

#!/usr/bin/env bash
# On a machine with an NVIDIA GPU: installs, measures training steps beside PyTorch (eager and compiled),
# and trains and tests the nets of ResNet's Table 6. Run it from the checkout:
#
#     examples/gpu.sh gpu-results --set data.path=CIFAR10
#
# The first argument is the folder of results; the rest goes to `cnn-depth table`. Without data.path
# CIFAR-10 is downloaded (tensorflow-datasets). Started again it goes on: what is measured or trained is
# kept. A measurement that fails is told, and is tried again the next time; the rest goes on.
#
#     NETS="resnet:50 vgg:D"   which networks are measured
#     SEEDS=5                  how often each row of the table is trained
#     PROFILE=demo             a table of another profile, such as one to try this with
#     EXTRA=cuda,tfds,peers    what is installed; VENV=.venv: where
set -uo pipefail

if [ $# -lt 1 ]; then
  echo "usage: examples/gpu.sh RESULTS [OPTION OF cnn-depth table ...]" >&2
  exit 2
fi
results=$1
shift
nets=${NETS:-resnet:50 resnet:18 vgg:D alexnet:two_gpu}
venv=${VENV:-.venv}
failed=0

# once FILE COMMAND...: keeps what a command prints, unless it is there; half of it is never kept.
once() {
  local file=$results/$1
  shift
  [ -s "$file" ] && return
  echo "== $*"
  if "$@" > "$file.part"; then
    mv "$file.part" "$file"
  else
    echo "failed: $*" >&2
    failed=1
  fi
}

mkdir -p "$results" || exit
make --no-print-directory "$venv/.installed-${EXTRA:-cuda,tfds,peers}" VENV="$venv" || exit
once doctor.json "$venv/bin/cnn-depth" doctor --json
for net in $nets; do
  once "step-${net//[:@]/-}.json" "$venv/bin/cnn-depth" bench step --arch "$net" --peer torch --seeds 0 --json
done
once step-cifar.json "$venv/bin/cnn-depth" bench step --arch cifar_resnet:20 --peer torch --json
"$venv/bin/cnn-depth" table resnet-6 --profile "${PROFILE:-cifar}" --seeds "${SEEDS:-1}" \
  --runs "$results/runs" "$@" | tee "$results/resnet-6.txt" || failed=1
exit "$failed"

#!/bin/sh
# Compiles the example policies for the demo model and verifies the result.
#
#   sh examples/make-patches.sh MODEL [DIR]
#
# MODEL is the folder that `policypatch demo-model` made; DIR, examples/patches unless given, receives the files.
# Equal input gives an equal digest: a second run finds every file there already, with the same content.
set -eu

here=$(dirname "$0")
model=${1:?name the folder of the demo model}
patches=${2:-$here/patches}
# The command of the checkout's own environment where there is one: nothing has to be activated.
policypatch=${POLICYPATCH:-$(PATH="$here/../.venv/bin:$PATH" command -v policypatch)}

for name in pirate bullets json-only safety; do
    $policypatch compile --model "$model" --dtype bfloat16 --raw --text "$here/policies/$name.txt" --keep-text \
        --name "$name" --version 1.0.0 --license Apache-2.0 -o "$patches"
    $policypatch verify "$patches/$name-1.0.0.safetensors" --model "$model"
done

#!/usr/bin/env bash
# Fills .gpu/ with what a GPU box without a registry lacks; .gpu/ is never committed and travels as carried folders.
#   SHARED=../shared/gpu bash benchmarks/gpu/build_pack.sh [WORKDIR]      about 2 minutes; needs pip, unzip, xz
# .gpu/pack/    site.tar.xz (peers' stacks, bitsandbytes), luthier.tar.xz (what luthier needs; tokenizer; GSM8K's
#               rows), site_ds.tar.xz (DeepSpeed), peers/, commit: 17 MB, in every call
# .gpu/gguf1/, .gpu/gguf2/    the halves of SmolLM2's GGUF, 45 MB each: two calls on one machine, with the pack
set -euo pipefail
cd "$(dirname "$0")/../.."
ROOT=$PWD SHARED=${SHARED:-../shared} PYTHON=${PYTHON:-.venv/bin/python}
W=${1:-$(mktemp -d)}
rm -rf .gpu && mkdir -p "$W/gpu" .gpu/pack .gpu/gguf1 .gpu/gguf2
[ -e "$W/gpu/build_pack.sh" ] || cp -r "$SHARED/gpu/." "$W/gpu/"
chmod -R u+w "$W/gpu"
[ -e "$W/gpu/site.tar.xz" ] || bash "$W/gpu/build_pack.sh" "$W/gpu/w"
mkdir -p "$W/wheels" && rm -rf "$W/site" && mkdir -p "$W/site/luthier" "$W/site/tok" "$W/site/data"
for name in pydantic pydantic_core annotated-types typing-inspection typing_extensions ruamel.yaml gguf; do
  python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
    -d "$W/wheels" "$(grep -i "^${name//[-_]/[-_]}==" constraints.txt)"
done
for wheel in "$W"/wheels/*.whl; do unzip -qo "$wheel" -d "$W/site/luthier"; done
find "$W/site/luthier" -depth -type d \( -name __pycache__ -o -name tests -o -name scripts \) -exec rm -rf {} +
cp "$SHARED/data/gsm8k/train.jsonl" "$SHARED/data/gsm8k/test.jsonl" "$W/site/data/"
SITE=$W/site "$PYTHON" - <<'P'
import os, shutil
from pathlib import Path
from luthier.model.embedded import ensure_smollm2, find_gguf
folder = ensure_smollm2()
for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
    shutil.copy(folder / name, Path(os.environ["SITE"]) / "tok")
data = find_gguf().read_bytes()
half = len(data) // 2
Path(".gpu/gguf1/part").write_bytes(data[:half])
Path(".gpu/gguf2/part").write_bytes(data[half:])
P
xz -T0 -6 .gpu/gguf1/part .gpu/gguf2/part
(cd "$W/site" && tar cf - luthier tok data | xz -T0 -6 > "$ROOT/.gpu/pack/luthier.tar.xz")
cp "$W/gpu/site.tar.xz" .gpu/pack/
cp -r "$W/gpu/peers" .gpu/pack/peers && chmod -R u+w .gpu/pack
# DeepSpeed for Python 3.12, from its source archive (nothing is compiled), and what it imports; setuptools is for its build.
mkdir -p "$W/ds" "$W/site_ds"
DS_BUILD_OPS=0 "$PYTHON" -m pip wheel -q --no-deps --no-build-isolation -w "$W/ds" "$(grep '^deepspeed==' constraints.txt)"
for name in hjson einops nvidia-ml-py py-cpuinfo msgpack; do
  python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
    -d "$W/ds" "$(grep -i "^${name//[-_]/[-_]}==" constraints.txt)"
done
for wheel in "$W"/ds/*.whl; do unzip -qo "$wheel" -d "$W/site_ds"; done
(cd "$W/site_ds" && tar cf - . | xz -T0 -6 > "$ROOT/.gpu/pack/site_ds.tar.xz")
git rev-parse --short HEAD > .gpu/pack/commit
du -sb .gpu/* && ls -la .gpu/pack

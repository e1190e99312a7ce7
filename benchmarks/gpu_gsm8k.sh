#!/usr/bin/env bash
# GSM8K with SmolLM2-135M on one GPU: LoRA and full, one and three epochs, all training rows, all test rows.
#   DATA=folder/with/train.jsonl,test.jsonl OUT=folder bash benchmarks/gpu_gsm8k.sh
# Leaves in $OUT for each run a log and a tar: stages (times, scores), comparison, metrics, manifest, resolved recipe.
set -u
baseline=${BASELINE:-}
DATA=${DATA:-../shared/data/gsm8k}
OUT=${OUT:-runs/gpu_gsm8k}
WORK=${WORK:-/tmp/gsm8k}
PYTHON=${PYTHON:-python3}
for setting in ${SETTINGS:-lora:1 full:1 lora:3 full:3}; do
  method=${setting%%:*} epochs=${setting##*:} name=$method-$epochs
  method_keys="method.name=$method"
  # Keys of LoRA would be refused for full: a recipe of its own for each method.
  sed -e '/^method:/,/^$/d' recipes/gsm8k-smollm2-lora.yaml > "$WORK-$name.yaml"
  # The untouched model is the same for all settings: its finished stage is taken over, and reused when all it
  # depends on is equal.
  if [ -n "${baseline:-}" ]; then
    mkdir -p "$WORK/$name/stages" "$WORK/$name/eval"
    cp "$baseline/stages/baseline.json" "$WORK/$name/stages/" && cp "$baseline/eval/before.json" "$WORK/$name/eval/"
  fi
  start=$(date +%s)
  "$PYTHON" -m luthier run "$WORK-$name.yaml" $method_keys data.train.0.path="$DATA/train.jsonl" data.train.0.limit=7473 \
    data.validation.fraction=0.02 evaluate.tasks.0.path="$DATA/test.jsonl" evaluate.tasks.0.limit=660 \
    train.num_train_epochs="$epochs" output_dir="$WORK/$name" > /dev/null 2> "$WORK-$name.log"
  echo "$name: exit $?, $(($(date +%s) - start)) s"
  baseline=${baseline:-$WORK/$name}
  grep -E "^(  gsm8k|  trained|device|  train\.|  merged)" "$WORK-$name.log"
  mkdir -p "$OUT"
  (cd "$WORK/$name" && tar czf "$OUT/$name.tar.gz" stages metrics.jsonl events.jsonl manifest.json resolved.yaml eval/comparison.json)
  cp "$WORK-$name.log" "$OUT/$name.log"
done

#!/usr/bin/env bash
# GSM8K with SmolLM2-135M on one GPU: LoRA and full, one and three epochs, all training rows, all test rows.
#   DATA=folder/with/train.jsonl,test.jsonl OUT=folder bash benchmarks/gpu_gsm8k.sh
# Leaves in $OUT for each run: stages/*.json (times, scores), comparison.json, metrics.jsonl, manifest.json, resolved.yaml.
set -u
DATA=${DATA:-../shared/data/gsm8k}
OUT=${OUT:-runs/gpu_gsm8k}
WORK=${WORK:-/tmp/gsm8k}
PYTHON=${PYTHON:-python3}
for setting in ${SETTINGS:-lora:1 full:1 lora:3 full:3}; do
  method=${setting%%:*} epochs=${setting##*:} name=$method-$epochs
  method_keys="method.name=$method"
  # Keys of LoRA would be refused for full: a recipe of its own for each method.
  sed -e '/^method:/,/^$/d' recipes/gsm8k-smollm2-lora.yaml > "$WORK-$name.yaml"
  start=$(date +%s)
  "$PYTHON" -m luthier run "$WORK-$name.yaml" $method_keys data.train.0.path="$DATA/train.jsonl" data.train.0.limit=7473 \
    data.validation.fraction=0.02 evaluate.tasks.0.path="$DATA/test.jsonl" evaluate.tasks.0.limit=660 \
    train.num_train_epochs="$epochs" output_dir="$WORK/$name" > /dev/null 2> "$WORK-$name.log"
  echo "$name: exit $?, $(($(date +%s) - start)) s"
  grep -E "^(  gsm8k|  trained|device|  train\.|  merged)" "$WORK-$name.log"
  mkdir -p "$OUT/$name"
  cp -r "$WORK/$name/stages" "$WORK/$name"/{metrics.jsonl,events.jsonl,manifest.json,resolved.yaml} "$OUT/$name/" 2> /dev/null
  cp "$WORK/$name/eval/comparison.json" "$OUT/$name/" 2> /dev/null
  tail -5 "$WORK-$name.log" > "$OUT/$name/last_lines.txt"
done

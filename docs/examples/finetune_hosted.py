"""Tune a model on tickets.jsonl with OpenAI's hosted service, and ask it."""

import sys
import time

from openai import OpenAI

client = OpenAI()

file = client.files.create(file=open(sys.argv[1], "rb"), purpose="fine-tune")
client.files.wait_for_processing(file.id)
job = client.fine_tuning.jobs.create(
    model="gpt-4o-mini-2024-07-18",
    training_file=file.id,
    suffix="tickets",
    hyperparameters={"n_epochs": 1, "batch_size": 4},
    metadata={"team": "support"},
)
print("job", job.id)

seen = set()
while job.status not in ("succeeded", "failed", "cancelled"):
    time.sleep(2)
    job = client.fine_tuning.jobs.retrieve(job.id)
    for event in reversed(client.fine_tuning.jobs.list_events(job.id).data):
        if event.id not in seen:
            seen.add(event.id)
            print(event.level, event.message)
if job.status != "succeeded":
    sys.exit(f"{job.status}: {job.error and job.error.message}")

for checkpoint in client.fine_tuning.jobs.checkpoints.list(job.id):
    print("checkpoint", checkpoint.fine_tuned_model_checkpoint, checkpoint.metrics.train_loss)
print(client.files.content(job.result_files[0]).text)

answer = client.chat.completions.create(
    model=job.fine_tuned_model,
    messages=[{"role": "user", "content": "Where is my parcel?"}],
    max_tokens=40,
)
print(job.fine_tuned_model, "says:", answer.choices[0].message.content)

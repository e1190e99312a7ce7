"""Model folders to the Hugging Face Hub: files.py what goes, upload.py how, failures.py what a refusal means."""

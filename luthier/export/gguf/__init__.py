"""A merged model as one GGUF file for llama.cpp, Ollama and LM Studio, read back by an independent runner first.

families.py         which models, what each does to its weights        tensors.py     weights, one at a time
hyperparameters.py  config.json -> keys                                types.py       F16, Q8_0, Q4_0, ...
vocabulary.py       tokenizer -> tokens, merges or scores, templates   write.py       all of it into a file
runner.py           llama.cpp over HTTP, or transformers' loader       check.py       does the file answer alike?
export.py           write, check, then give the file its name          modelfile.py   for Ollama
"""

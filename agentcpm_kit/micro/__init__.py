"""micro-qwen3: a Qwen3 of about 1M parameters, its tokenizer, its general skills and the recipe that builds it."""

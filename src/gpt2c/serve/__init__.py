"""An HTTP server for OpenAI's completions API (docs/server.md).

It is a door to `gpt2c.Scheduler` and `GPT2`: it parses requests, adds them and writes answers, and
holds no engine. It needs the extra ``serve``.
"""

"""A web app on FastAPI: GET /stream returns the completion of a prompt as it is generated.

    pip install fastapi uvicorn
    python docs/examples/fastapi_app.py
    curl --no-buffer 'http://127.0.0.1:8000/stream?prompt=Once+upon+a+time'

FastAPI runs each request in a task of one event loop. Requests that overlap share the model's
forward passes (docs/scheduler.md). The app does nothing for this. If a client goes away, its
completion ends with the token that is being computed.
"""

from __future__ import annotations

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from gpt2c import GPT2

app = FastAPI()
model = GPT2.from_pretrained()


@app.get("/stream")
async def stream(prompt: str, max_new_tokens: int = 40, seed: int = 0) -> StreamingResponse:
    """Stream the completion of `prompt`. Equal seeds give equal completions."""
    pieces = model.stream_async(prompt, max_new_tokens=max_new_tokens, temperature=0.8, seed=seed)
    return StreamingResponse(pieces, media_type="text/plain; charset=utf-8")


@app.exception_handler(ValueError)  # gpt2c.OptionError and gpt2c.ContextError are ValueErrors
async def refuse(_: Request, error: ValueError) -> JSONResponse:
    """Tell the client what is wrong with its request."""
    return JSONResponse({"error": str(error)}, status_code=400)


if __name__ == "__main__":
    uvicorn.run(app)

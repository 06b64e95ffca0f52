"""Runs the pipeline's command line, and ends it with exit code 97 where it reaches beyond this machine or for a model."""

import os
import runpy
import sys

# Libraries by which programs call models. LangChain's core and LangSmith's client come with LangGraph, and are none.
MODELS = {
    "anthropic",
    "boto3",
    "cohere",
    "google.generativeai",
    "google.genai",
    "groq",
    "huggingface_hub",
    "langchain_anthropic",
    "langchain_community",
    "langchain_openai",
    "litellm",
    "llama_cpp",
    "mistralai",
    "ollama",
    "openai",
    "torch",
    "transformers",
}


def guard(event: str, arguments: tuple) -> None:
    """Sees every connection, every look-up of a name and every import of this process."""
    if event == "socket.connect":
        address = arguments[1]
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1"):
            end(f"connects to {address}")
    elif event == "socket.getaddrinfo" and arguments[0] not in ("127.0.0.1", "::1", "localhost", None):
        end(f"looks up {arguments[0]}")
    elif event == "import" and arguments[0] in MODELS:
        end(f"imports {arguments[0]}")


def end(why: str) -> None:
    print(f"guard: the pipeline {why}", file=sys.stderr, flush=True)
    os._exit(97)


sys.addaudithook(guard)
if sys.argv[1] == "-c":
    exec(sys.argv[2])
else:
    sys.argv[0] = "devops_pipeline"
    runpy.run_module("devops_pipeline", run_name="__main__")

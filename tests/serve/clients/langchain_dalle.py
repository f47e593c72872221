"""LangChain's wrapper with its defaults; prints the addresses that it got. Runs in an environment that has it."""

import json
import sys

from langchain_community.tools.openai_dalle_image_generation import OpenAIDALLEImageGenerationTool
from langchain_community.utilities.dalle_image_generator import DallEAPIWrapper


def main(url: str) -> None:
    plain = DallEAPIWrapper(api_key="none", base_url=url)
    better = DallEAPIWrapper(api_key="none", base_url=url, model="dall-e-3", n=2, quality="hd", separator=" ")
    tool = OpenAIDALLEImageGenerationTool(api_wrapper=plain)
    print(json.dumps([plain.run("a digit"), *better.run("a digit").split(), tool.run("a digit")]))


if __name__ == "__main__":
    main(sys.argv[1])

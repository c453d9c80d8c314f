"""What does a weight format cost? The same text, through one model in several formats.

python examples/formats.py [MODEL] [FORMAT ...]
"""

import sys

import llama_ext
from llama_ext.perplexity import perplexity

model = sys.argv[1] if len(sys.argv) > 1 else "smollm2"
formats = sys.argv[2:] or ["q8_0", "q4_0"]
text = (
    "Rain falls when air cools and can no longer hold the water in it. Clouds are made of drops so small that they "
    "float. When they meet, they grow, and when they are heavy enough, they fall. Most of the rain in the world falls "
    "into the sea, where most of the water came from."
)

for name in (None, *formats):
    llm = llama_ext.load(model, weights=name)
    size = llm.checkpoint.weight_bytes / 1e6
    print(f"{name or 'as it is':10} {size:10,.0f} MB {perplexity(llm, text).perplexity:10.3f}")

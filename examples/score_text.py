"""How likely does the model find each of several texts?

python examples/score_text.py [MODEL] [TEXT ...]
"""

import sys

import llama_ext
from llama_ext.perplexity import perplexity

llm = llama_ext.load(sys.argv[1] if len(sys.argv) > 1 else "smollm2", progress=True)
texts = sys.argv[2:] or [
    "The cat sat on the mat and looked at the birds outside.",
    "The mat sat at the birds and cat outside on the looked.",
]
for text in texts:
    score = perplexity(llm, text)
    print(f"{score.perplexity:10.1f}  {text}")

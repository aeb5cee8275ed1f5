"""LongTail: see and measure what a vision-language model still needs when you take its visual tokens away."""

from . import reducers as _reducers  # registers every method
from .batch import generate_batch, preview
from .generate import Answer, answer, compare, generate
from .image import BadImage, open_image
from .models import load
from .models.memory import OutOfMemory
from .reducer import REDUCERS, Reducer, make, param, register
from .reducers.full import Full
from .reducers.longtail import LongTail
from .reducers.random import Random
from .reducers.sequential import Sequential
from .reducers.topk import TopK
from .reducers.uniform import Uniform
from .tokens import Reduced, VisualTokens

from . import attention as attention
from . import checkpoint as checkpoint
from . import clip_tokenizer as clip_tokenizer
from . import layout as layout
from . import outline as outline
from . import processors as processors

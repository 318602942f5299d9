from . import clip as clip

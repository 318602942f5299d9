from .presets import BUNDLES as BUNDLES

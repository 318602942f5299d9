from . import fp8 as fp8
from . import fused as fused
from . import regions as regions

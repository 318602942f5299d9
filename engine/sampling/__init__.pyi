from . import formulas as formulas
from . import levels as levels

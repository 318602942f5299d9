from . import graph as graph
from . import refit as refit

from .assessing import assess as assess
from .calibrating import calibrate as calibrate
from .generating import generate as generate
from .inspecting import inspect as inspect
from .registering import add_works as add_works
from .registering import check_picture as check_picture
from .registering import list_works as list_works
from .registering import remove_works as remove_works

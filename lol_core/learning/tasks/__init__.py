"""What is predicted: numbers, yes/no attributes, or one of several classes; and the checks that labels must pass before
any training starts.
"""

from lol_core.learning.tasks.base import TASKS, Task, register
from lol_core.learning.tasks.binary import Binary
from lol_core.learning.tasks.classes import class_name
from lol_core.learning.tasks.making import kind_of, labels_digest, make_task, task_from_dict
from lol_core.learning.tasks.multiclass import Multiclass
from lol_core.learning.tasks.regression import Regression

__all__ = [
    "TASKS",
    "Binary",
    "Multiclass",
    "Regression",
    "Task",
    "class_name",
    "kind_of",
    "labels_digest",
    "make_task",
    "register",
    "task_from_dict",
]

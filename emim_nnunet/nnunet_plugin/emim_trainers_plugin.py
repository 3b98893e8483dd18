"""The only module that nnU-Net's trainer search looks into (``nnUNet_extTrainer``).

Classes that are *re-exported* here stay picklable and identical over look-ups; classes defined here would not, because nnU-Net
forgets this module after the search.
"""

from emim_nnunet.trainer_search import report_user_errors
from emim_nnunet.trainers import *  # noqa: F403

report_user_errors()

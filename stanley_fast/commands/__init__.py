"""The commands of stanley-fast, one file each: a dataclass of which tyro makes options and help.

A new one is a file here and its name in `Command`.
"""

from stanley_fast.commands.bench import Bench
from stanley_fast.commands.compare import Compare
from stanley_fast.commands.doctor import Doctor
from stanley_fast.commands.ergodicity import Ergodicity
from stanley_fast.commands.fid import Fid
from stanley_fast.commands.inpaint import Inpaint
from stanley_fast.commands.sample import Sample
from stanley_fast.commands.train import Train

Command = Train | Sample | Compare | Inpaint | Fid | Ergodicity | Bench | Doctor

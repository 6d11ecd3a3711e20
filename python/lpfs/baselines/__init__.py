"""Other ways to find the features that matter, each behind one protocol: see `Method`.

>>> METHODS["permutation"](repeats=1)
Permutation(shuffle='set', repeats=1, metric='log_loss', batch_size=1024, groups=())
"""

from lpfs.baselines.adafs import AdaFS
from lpfs.baselines.amplified import AmplifiedElimination, AmplifiedPermutation
from lpfs.baselines.autofield import AutoField
from lpfs.baselines.cold import COLD
from lpfs.baselines.erase import ForestPermutation, LPFSAsInERASE
from lpfs.baselines.fairfs import FairFS
from lpfs.baselines.fscd import FSCD
from lpfs.baselines.group_lasso import GroupLasso
from lpfs.baselines.hard_concrete import HardConcrete
from lpfs.baselines.knockoffs import Knockoffs
from lpfs.baselines.l1 import L1
from lpfs.baselines.leap import LeAP
from lpfs.baselines.lpfs import LPFS, LPFSPlusPlus
from lpfs.baselines.method import (
    Change,
    Feed,
    Method,
    Outcome,
    Revived,
    RowsOfGates,
    Task,
    split_rows,
)
from lpfs.baselines.mrmr import MRMR
from lpfs.baselines.permutation import Permutation
from lpfs.baselines.random import Random
from lpfs.baselines.recursive import RecursiveElimination
from lpfs.baselines.removal_costs import GatesByRemovalCosts
from lpfs.baselines.shap import TreesBySHAP
from lpfs.baselines.shark import SHARK
from lpfs.baselines.shuffle_gate import ShuffleGate
from lpfs.baselines.single_field import SingleField
from lpfs.baselines.single_shot import SingleShot
from lpfs.baselines.splicing import Splicing
from lpfs.baselines.stg import STG
from lpfs.baselines.supernet import Supernet
from lpfs.baselines.surgeon import Surgeon
from lpfs.baselines.trees import Trees
from lpfs.baselines.umec import UMEC
from lpfs.baselines.variational_dropout import VariationalDropout
from lpfs.baselines.votes import Votes
from lpfs.method.keeping import Kept, only

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        GatesByRemovalCosts,
        LPFSPlusPlus,
        LPFS,
        RecursiveElimination,
        AmplifiedElimination,
        GroupLasso,
        L1,
        FSCD,
        UMEC,
        Permutation,
        AmplifiedPermutation,
        COLD,
        AutoField,
        AdaFS,
        STG,
        HardConcrete,
        ShuffleGate,
        LeAP,
        SHARK,
        FairFS,
        VariationalDropout,
        SingleShot,
        Knockoffs,
        Splicing,
        Votes,
        Supernet,
        Surgeon,
        MRMR,
        Trees,
        TreesBySHAP,
        LPFSAsInERASE,
        ForestPermutation,
        SingleField,
        Random,
    )
}
"""Name → method, as configurations name them."""

__all__ = [
    "METHODS",
    "Change",
    "Feed",
    "Kept",
    "Method",
    "Outcome",
    "Revived",
    "RowsOfGates",
    "Task",
    "only",
    "split_rows",
]

"""The parts of the experiment: what is pretrained on which patients, and how often it is fine-tuned."""

from __future__ import annotations

from dataclasses import replace

from real.arms import METHODS, WITHOUT_BODY
from real.data import COHORT, FINAL, PLANNED, SEARCH
from real.part import LINEAR, Part, Tuning

# of the hypotheses, see HYPOTHESIS.md; everything else explores
PRIMARY_ARM, PRIMARY_LABELLED = "moco_zca", 2
LOCAL_ARM, LOCAL_FOLDS = "moco_local", COHORT[1:]  # of the third hypothesis; the fourth has its folds
PRIMARY = Tuning(3e-4, head=LINEAR, steps=200)
BEST_SCRATCH = (Tuning(1e-3, head=LINEAR, steps=200), Tuning(3e-3))  # of each head, in the search
RATE = 1e-3  # of fine-tuning; part "rates" tries others, for each arm its own
# each of the three changes made the frozen features of E-MIM better in the search
TUNED_EMIM = 'emim_tuned=EMIM,cell_size=[16,16],fill="learned",fill_start=-3.0,decoder_min_width=48'
RECIPES = (  # what the search tries: the methods, and one change of E-MIM, MIM or MoCo at a time
    "moco_zca",
    "emim",
    "mim",
    "emim_sparse=EMIM,sparse_encoder=true",
    "moco",
    "mim_sparse=MIM,sparse_encoder=true",
    "self_distillation_sparse=MaskedSelfDistillation,sparse_encoder=true",
    "moco_local",
    "mask_in_mask",
    "emim_no_pbt",
    "emim_bare_pbt=EMIM,projector_widths=[0,0,0]",
    "emim_cell16=EMIM,cell_size=[16,16]",
    "emim_cell4=EMIM,cell_size=[4,4]",
    "emim_modality=EMIM,position_ratio=0.1,patch_ratio=0.3",
    'emim_fill=EMIM,fill="learned",fill_start=-3.0',
    "emim_masked_pbt=EMIM,barlow_masked_cells=true",
    "emim_wide=EMIM,decoder_min_width=48",
    "emim_slow=EMIM,initial_lr=0.0003",
    "emim_gradient=EMIM,original_view_gradient=true",
    TUNED_EMIM,
)
MASKED = ("emim", "emim_no_pbt", "mim", "self_distillation")
MODALITY_MASK = (  # E-MIM without its modality mask, and with little else; as many cells are hidden
    "emim_patches=EMIM,modality_mask=false,patch_ratio=0.667",
    "emim_modality=EMIM,position_ratio=0.1,patch_ratio=0.3",
)
LONG = (*MASKED, PRIMARY_ARM, LOCAL_ARM, *MODALITY_MASK)
COHORT_PART = Part(  # of the second hypothesis
    COHORT[0],
    (PRIMARY_ARM,),
    epochs=8,
    label_fold=COHORT[0],
    labelled=(PRIMARY_LABELLED,),
    draws=16,
    tunings=(PRIMARY,),
    scratch=BEST_SCRATCH[:1],
)
TRANSFERRED = (PRIMARY_ARM, "mim", "emim")
PARTS = {
    # what the methods learn: spectra, skills and frozen features. The test patients of the search were learnt from without
    # their labels, so these are no scores of unseen patients
    "methods": Part(
        FINAL,
        tuple(name for name in METHODS if not name.endswith(WITHOUT_BODY)),
        labelled=(8,),
        draws=8,
        linear=True,
        after=(8, 20),
    ),
    # does it matter that masked positions reach the norms of visible ones?
    "sparse": Part(
        FINAL,
        ("self_distillation_sparse=MaskedSelfDistillation,sparse_encoder=true",),
        epochs=8,
        labelled=(8,),
        draws=8,
        linear=True,
    ),
    "body": Part(FINAL, (f"mim{WITHOUT_BODY}",), epochs=8),
    # successive halving: frozen features of all recipes, then fine-tuning of some
    "search": Part(SEARCH, RECIPES, epochs=8, labelled=(2,), draws=4, linear=True),
    "halved": Part(SEARCH, RECIPES[:5], epochs=8, labelled=(2,), draws=4, tunings=(Tuning(RATE),), linear=True),
    # each arm at its own rate; 3e-4 was tried on one draw, where the loss was far from its end after 500 steps
    "rates": Part(
        SEARCH,
        ("moco_zca", "mim"),
        epochs=8,
        labelled=(2,),
        draws=4,
        tunings=tuple(Tuning(rate, factor) for factor in (1.0, 0.1) for rate in (RATE, 3e-3, 1e-2)),
    ),
    # a decoder first, on an encoder that stays as it was pretrained for a while or for good
    "frozen": Part(
        SEARCH,
        ("moco", "moco_zca"),
        epochs=8,
        labelled=(2,),
        draws=4,
        tunings=(Tuning(RATE, frozen=1.0), Tuning(3e-3, frozen=1.0), Tuning(3e-3, 0.1, frozen=0.5), Tuning(3e-3)),
    ),
    # networks of two patients forget the others long before 500 steps
    "short": Part(
        SEARCH, ("moco_zca",), epochs=8, labelled=(2,), draws=4, tunings=(Tuning(3e-3, frozen=1.0, steps=200),)
    ),
    # a linear head that is fitted first: it has nothing to learn, and leaves the encoder where it is; each arm's rate
    "linear_first": Part(
        SEARCH,
        ("moco_zca", "moco", "mim", "emim", "emim_no_pbt", "moco_local", "mask_in_mask", TUNED_EMIM),
        epochs=8,
        labelled=(2,),
        draws=4,
        tunings=tuple(Tuning(rate, head=LINEAR, steps=200) for rate in (1e-4, 3e-4, RATE, 3e-3)),
    ),
    # segmentation of what is there: does dropping modalities in training help, and does E-MIM's encoder help with it?
    "missing": Part(
        SEARCH,
        ("emim",),
        epochs=8,
        labelled=(8,),
        draws=8,
        tunings=tuple(Tuning(3e-3, p_drop=p) for p in (0.0, 0.25)),
        subsets=True,
    ),
    # the first hypothesis
    "primary": Part(
        FINAL,
        (PRIMARY_ARM,),
        seeds=3,
        label_fold=FINAL,
        labelled=(PRIMARY_LABELLED,),
        draws=48,
        tunings=(PRIMARY,),
        scratch=BEST_SCRATCH[:1],
    ),
    # the second hypothesis: SSL has seen other patients of the tested sites. Draws of a fold share its encoder
    **{f"cohort{fold}": replace(COHORT_PART, fold=fold, label_fold=fold) for fold in COHORT},
    # the third hypothesis: without whitening, and with encoders enough to see how they differ
    **{
        f"local{fold}": replace(COHORT_PART, fold=fold, label_fold=fold, arms=(LOCAL_ARM,), seeds=3, draws=24)
        for fold in LOCAL_FOLDS
    },
    # how much of it are the encoders? All of a fold in the same draws
    **{
        f"encoders{fold}": replace(
            COHORT_PART, fold=fold, label_fold=fold, arms=(LOCAL_ARM,), seeds=3, crossed=True, draws=8
        )
        for fold in LOCAL_FOLDS
    },
    # the fourth hypothesis, that of the first arm: at the rate that is best from scratch
    **{
        f"same_rate{fold}": replace(
            COHORT_PART,
            fold=fold,
            label_fold=fold,
            arms=("mask_in_mask", "emim", LOCAL_ARM, PRIMARY_ARM),
            draws=24,
            tunings=BEST_SCRATCH[:1],
        )
        for fold in LOCAL_FOLDS
    },
    # the fifth and the sixth hypothesis: the same with draws that nothing was looked at in, on all folds. Beside E-MIM, what
    # it adds to masking is left out
    **{
        f"{arms[0]}{fold}": replace(
            COHORT_PART,
            fold=fold,
            label_fold=fold,
            arms=arms,
            first_draw=24,
            draws=32,
            tunings=BEST_SCRATCH[:1],
        )
        for arms in (("mask_in_mask",), ("emim", "mim", "emim_no_pbt"))
        for fold in COHORT
    },
    # the first hypothesis at that rate, as short as the others: were its own too low and too long?
    "unseen_site": Part(
        FINAL,
        ("emim", "emim_no_pbt", PRIMARY_ARM),
        epochs=8,
        label_fold=FINAL,
        labelled=(PRIMARY_LABELLED,),
        draws=48,
        tunings=BEST_SCRATCH[:1],
    ),
    # the eighth hypothesis: what was best there, with more encoders, in draws that nothing was looked at in
    f"unseen{FINAL}": Part(
        FINAL,
        ("emim_no_pbt",),
        epochs=8,
        seeds=3,
        label_fold=FINAL,
        labelled=(PRIMARY_LABELLED,),
        first_draw=48,
        draws=48,
        tunings=BEST_SCRATCH[:1],
    ),
    # the rest explores, on a fold of the second hypothesis. nnU-Net's own decoder from scratch, which costs three times as much
    "decoder": Part(
        COHORT[0], (), label_fold=COHORT[0], labelled=(PRIMARY_LABELLED,), draws=16, scratch=BEST_SCRATCH[1:]
    ),
    # with how many labels it pays
    "curve": replace(COHORT_PART, labelled=(1, 2, 4, 8, 16), draws=8, scratch=BEST_SCRATCH, linear=True),
    "emim_curve": replace(COHORT_PART, arms=("emim",), labelled=(1, 2, 4, 8, 16), draws=8, tunings=BEST_SCRATCH[:1]),
    "others": replace(
        COHORT_PART,
        arms=tuple(name for name in METHODS if not name.endswith(WITHOUT_BODY) and name != PRIMARY_ARM),
        labelled=(2, 8),
        draws=8,
        scratch=BEST_SCRATCH,
        linear=True,
    ),
    # the recipe of E-MIM that the search found, beside the others
    "tuned": replace(COHORT_PART, arms=(TUNED_EMIM,), labelled=(2, 8), draws=8, scratch=BEST_SCRATCH, linear=True),
    # in the search MIM was best at another rate than MoCo
    "own_rate": replace(
        COHORT_PART,
        arms=("mim", "emim", TUNED_EMIM, "emim_no_pbt", "self_distillation", "mask_in_mask", LOCAL_ARM),
        draws=8,
        tunings=BEST_SCRATCH[:1],
    ),
    # does masked modelling need longer stages, or another share of the modality mask? Frozen features, then fine-tuning
    "long": Part(
        COHORT[0],
        LONG,
        epochs=40,
        label_fold=COHORT[0],
        labelled=(8,),
        draws=8,
        linear=True,
        after=(8, 20, 40),
    ),
    "long_tuned": Part(
        COHORT[0],
        LONG,
        epochs=40,
        label_fold=COHORT[0],
        labelled=(PRIMARY_LABELLED,),
        draws=8,
        tunings=(PRIMARY,),
        scratch=BEST_SCRATCH,
        after=(40,),
    ),
    # the widths and blocks of nnU-Net's own plan: an encoder 50 times as large; for a GPU. Both sides at both rates
    "planned": replace(
        COHORT_PART,
        arms=("emim", PRIMARY_ARM),
        tunings=(BEST_SCRATCH[0], PRIMARY),
        scratch=(BEST_SCRATCH[0], PRIMARY, BEST_SCRATCH[1]),
        configuration=PLANNED,
    ),
    "planned_long": replace(COHORT_PART, arms=("emim",), epochs=20, tunings=BEST_SCRATCH[:1], configuration=PLANNED),
    # transfer: the patients who are segmented have no T1ce
    "two_channels": replace(COHORT_PART, channels=("T1", "FLAIR")),
    # transfer: the encoder has seen drawn brains only, see brains.py; part "drawn" pretrains it with --data BRAINS
    "drawn": Part(COHORT[0], TRANSFERRED, epochs=8),
    "from_drawn": replace(COHORT_PART, arms=TRANSFERRED, linear=True, source="drawn"),
    # transfer: from these patients to others, without their heads, see brats.py
    "to_brats": replace(COHORT_PART, arms=TRANSFERRED, label_fold=FINAL, draws=8, linear=True, source="lgg"),
    # training from scratch with as much computing as pretraining and fine-tuning take together: a step of MoCo costs two
    "equal_compute": Part(
        COHORT[0],
        (),
        label_fold=COHORT[0],
        labelled=(PRIMARY_LABELLED,),
        draws=4,
        scratch=tuple(replace(tuning, steps=4_000) for tuning in BEST_SCRATCH),
    ),
}

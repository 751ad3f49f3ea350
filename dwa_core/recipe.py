"""The numbers of a recipe, typed and checked; dwa_paper/settings/presets.yaml has the values of each data set."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Seed = Annotated[int, Field(ge=0, lt=2**31)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, le=1e6)]  # of a loss's term; far above, its square is infinite in fp32
# What pixels in [0, 1] have. Other numbers are those of pixels to 255, and make NaN of networks.
Mean = Annotated[float, Field(ge=0, le=1)]
Deviation = Annotated[float, Field(ge=1e-3, le=1)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Images(Strict):
    """Side in pixels, and the normalisation (x - mean) / std of RGB values in [0, 1]."""

    side: Annotated[int, Field(ge=8)]
    mean: Annotated[list[Mean], Field(min_length=3, max_length=3)]
    std: Annotated[list[Deviation], Field(min_length=3, max_length=3)]
    # The authors' CIFAR-10 teacher is trained with one std, its images made and relabelled with another.
    std_after_teacher: Annotated[list[Deviation], Field(min_length=3, max_length=3)] | None = None

    @property
    def distilled_std(self) -> list[float]:
        """What images are made and students trained with."""
        return self.std_after_teacher or self.std


class Training(Strict):
    """What the teacher's and the student's training have in common."""

    epochs: Count
    batch_size: Annotated[int, Field(ge=2)]
    optimizer: Literal["sgd", "adamw"]
    learning_rate: Positive
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # of sgd
    weight_decay: Annotated[float, Field(ge=0, le=1)]
    decay_matrices_only: bool = False  # no weight decay on biases and BatchNorm
    warmup_epochs: Annotated[int, Field(ge=0)] = 0  # linear, from 1 % of the learning rate
    schedule: Literal["cosine", "constant"] = "cosine"  # of the learning rate, after the warm-up
    # The learning rate's cosine would be down to 0 after so many times the epochs, and so ends above 0 beyond 1.
    cosine_stretch: Annotated[float, Field(ge=1)] = 1.0
    crop: Literal["padded", "resized"]  # padded with black, or RandomResizedCrop; both with a flip
    crop_padding: Annotated[int, Field(ge=0)] = 4
    test_every: Count = 10  # epochs; the last epoch is always tested


class TeacherStage(Training):
    """The teacher's training, or the weights that replace it or that it starts from."""

    # Whose numbers these are. A name only: the hash of an artifact is made of the numbers.
    recipe: Literal["authors", "sre2l", "torchvision", "gvbsm"] = "authors"
    seed: Seed = 0
    # Instead of training: a torchvision weights name, such as IMAGENET1K_V1, or a file of one's own, *.safetensors.
    weights: str | None = None
    # Train `weights` further, with a new last layer where they are for another number of classes.
    fine_tune: bool = False

    def is_trained(self) -> bool:
        """Whether the network is trained, from the beginning or from `weights`."""
        return self.weights is None or self.fine_tune

    def own_weights(self) -> bool:
        """Whether `weights` is a file of the user's own."""
        return self.weights is not None and self.weights.endswith(".safetensors")

    def published_weights(self) -> bool:
        """Whether `weights` is a name of torchvision's."""
        return self.weights is not None and not self.own_weights()


class SynthesisStage(Strict):
    """What the distilled images start from, how the weights are adjusted, and how the images are optimised.

    The methods random-real and herded-real optimise none: of all this, they read the images' storage, and random-real
    the seed that draws them.
    """

    initial: Literal["real", "herded", "noise"] = "real"  # herded: the real images nearest to their class's mean
    adjustment: Literal["none", "random", "directed"] = "directed"
    rho: NotNegative = 0.015
    steps: Count = 12  # K
    iterations: Count
    learning_rate: Positive
    classes_per_batch: Count
    r_bn: Weight = 0.01
    r_var: Weight
    resized_crop: bool = False  # RandomResizedCrop and a random flip before the roll
    roll: Annotated[list[int], Field(min_length=2, max_length=2)] = [0, 4]  # pixels, both ends included
    seed: Seed = 0
    image_gradient_after_adjustment: Literal["cleared", "added"] = "cleared"
    weights_between_class_batches: Literal["restored", "kept"] = "restored"
    # "added": those of all image updates of a class batch go into the first adjustment step of the next.
    weight_gradients_of_image_updates: Literal["cleared", "added"] = "cleared"
    storage: Literal["png", "jpeg"] = "png"

    def sums_weight_gradients(self) -> bool:
        """Whether the image updates of a class batch sum up weight gradients, for an adjustment that adds them."""
        return self.adjustment == "directed" and self.weight_gradients_of_image_updates == "added"


class RelabelStage(Training):
    """The student's training on distilled images labelled by the teacher, and which of its tests is reported."""

    mixing: Literal["mixup", "cutmix"]
    mixing_alpha: Annotated[float, Field(ge=1e-3, le=1e6)]  # both parameters of the Beta distribution
    # teacher: the teacher labels each batch as it was cropped and mixed, as the paper does. fixed: it labels each image
    # once, as it is; with `teacher_batch_statistics` it also depends on the other images of the set. hard: the image's
    # class. The last two are mixed as the images are.
    labels: Literal["teacher", "fixed", "hard"] = "teacher"
    # Of the teacher's and the student's soft labels; hard labels have none.
    temperature: Annotated[float, Field(ge=1e-2, le=1e4)]
    loss_times_temperature_squared: bool = False
    teacher_batch_statistics: bool = False
    reported: Literal["last", "best"] = "last"


class Recipe(Strict):
    """Every number that determines a teacher, a distilled set and a student, beside the data."""

    ipc: Count = 10
    network: str  # the teacher's
    student: str
    stem: Literal["small", "torchvision"]
    seed: Seed = 0  # the student's
    images: Images
    teacher: TeacherStage
    synthesis: SynthesisStage
    relabel: RelabelStage
    # "auto" is bf16 on GPUs that compute in it, and on CPUs that are faster in it. fp32 is PyTorch's: on a GPU,
    # convolutions are rounded to TF32.
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    # Whether torch.compile makes the kernels of synthesis and training; YAML reads on and off as well. "auto": on a
    # GPU, for images of devices.COMPILED_SIDE or more.
    compile: Literal["auto", True, False] = "auto"

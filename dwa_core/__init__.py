"""Diversity-Driven Synthesis (DWA) and nothing else: no settings file is read, no file written.

recipe        the numbers of a recipe, typed
errors        the errors that a user sees, one line each
seeds         random numbers by key
devices       device, precision, memory format, CUDA graphs
augment       crops, flips, mixing, and what each iteration of the synthesis sees
batches       batches of images kept in memory or streamed from files
models        networks by name
batchnorm     the BatchNorm terms of the synthesis
adjust        the weight adjustment
initialise    the images that the synthesis starts from
synthesis     the optimisation of images
training      the training loop of teachers and students
relabel       labels, mixing and loss of students
diversity     how diverse a distilled set is
guard         numbers that go wrong, memory that runs out
"""

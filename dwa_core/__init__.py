"""Data set distillation by Diversity-Driven Synthesis (DWA): teacher, synthesis, relabel evaluation.

What is where, in the order in which data flow:

- presets, settings, settings_files, grid: the numbers of a run, and the settings files; notebook: a notebook's own.
- sources, data, batches, augment: real images, from files to augmented batches; own: those of a user.
- models, teacher, distributed: networks and their training.
- initialise, adjust, batchnorm, synthesize, distilled: initial images, the nudge of the weights, the terms of the loss,
  the optimisation, the set made; external: sets made elsewhere.
- relabel, continual, diversity: students, all classes at once or task by task, and what can be said of the set itself.
- store, records, publish, export, verify: what is kept, shared and checked.
- report, tables, figures, page: from records to what is shown.
- plan, status, watch, guard, stop: hours and disk needed, progress, numbers that go wrong, stopping and going on;
  command: how a command fails.
"""

"""Data set distillation by Diversity-Driven Synthesis (DWA): teacher, synthesis, relabel evaluation."""

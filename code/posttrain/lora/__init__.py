"""LoRA: adapters beside a frozen model, and its weights in four bits."""

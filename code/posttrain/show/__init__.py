"""What pages show: source, tables, token views, figures, checks."""

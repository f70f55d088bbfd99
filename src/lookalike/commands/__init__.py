"""What each verb of the command line takes; importing it must not import torch, or ``--help`` would take seconds."""

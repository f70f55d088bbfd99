"""What each verb of the command line takes and does; its flags import no torch, or ``--help`` would take seconds."""

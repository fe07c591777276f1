"""Workers: registration, lists, drain and sign-off."""

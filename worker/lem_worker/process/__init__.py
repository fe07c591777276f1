"""How the processes of one attempt are started, talk to each other and store evidence."""

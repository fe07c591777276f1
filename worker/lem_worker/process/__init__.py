"""How the processes of one attempt are started, exchange messages and store evidence."""

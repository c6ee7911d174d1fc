"""The database: its tables, the jobs, the journal, events and commands, and how it is copied and remade."""

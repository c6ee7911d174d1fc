"""What may go, when it goes, and what is made small instead."""

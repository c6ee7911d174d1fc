"""What a comparison showed, for people and for papers: one HTML page that needs nothing else, and a Markdown table."""

"""Tables: the domains of plain tables, of those with categories, and of those of which any question is asked."""

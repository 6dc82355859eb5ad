"""Pure array functions, numpy or torch in and out; nothing of rsseg is imported here."""

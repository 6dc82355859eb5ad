"""Pure array functions: numpy or torch in, numpy or torch out; nothing of rsseg is imported here."""

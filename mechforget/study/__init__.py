"""A study: settings in, a resumable run and its tables out."""

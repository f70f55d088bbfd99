"""Data: what a person names becomes rows, and rows become batches.

``source``      from what a person names to a source: ``open_source``, ``splits_of``, ``reference_and_query``
``example``     what a source is: rows with paths, labels and classes, of pictures or of texts, or some of them
``formats/``    how each kind is opened: ``places`` is the table of kinds, ``disk`` reads files, ``files`` lists them,
                ``encoded`` makes a source of any store of picture files, such as ``archives`` and ``tables``;
                ``arrays`` is for what is in memory already
``decode``      from bytes to a canvas; ``annotations/``: boxes, outlines and points; ``video/`` and ``text/``
``loader``      canvases of the rows of each step, cached or decoded by the workers of ``pool``
``order``       which rows make which step; ``prepared``: canvases on disk; ``fingerprint``: what the files held
"""

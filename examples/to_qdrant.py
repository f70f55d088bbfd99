"""A table of `lookalike embed` goes to Qdrant, and is searched there: `python to_qdrant.py photos.parquet`.

The engine here lives in this process (`pip install qdrant-client`); for one that serves, give its address in place of
":memory:". Rows are read some at a time, so the table may be larger than memory.
"""

import sys

import pyarrow.parquet as pq
from qdrant_client import QdrantClient, models

table = pq.ParquetFile(sys.argv[1], page_checksum_verification=True)
width = table.schema_arrow.field("embedding").type.list_size
client = QdrantClient(":memory:")
client.create_collection("pictures", vectors_config=models.VectorParams(size=width, distance=models.Distance.COSINE))

number = 0
for batch in table.iter_batches(2_000, columns=["path", "split", "label", "class", "embedding"]):
    points = [
        models.PointStruct(id=number + i, vector=row.pop("embedding"), payload=row)
        for i, row in enumerate(batch.to_pylist())
    ]
    client.upsert("pictures", points)
    number += len(points)

first = client.retrieve("pictures", [0], with_vectors=True)[0]
same_split = models.FieldCondition(key="split", match=models.MatchValue(value=first.payload["split"]))
found = client.query_points("pictures", first.vector, query_filter=models.Filter(must=[same_split]), limit=5)
for hit in found.points:
    print(f"{hit.score:.4f}  {hit.payload['path']}")

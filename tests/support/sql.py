"""SQL that changes a ledger without its interface."""

from sqlalchemy import create_engine, text

from towline.registry.ledger import Ledger


def execute_sql(ledger: Ledger, statement: str) -> None:
    engine = create_engine(ledger._chain._url)
    with engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()

"""What a store sends to its database: every statement as the driver got it, and every transaction."""

from __future__ import annotations

from typing import Any

from sqlalchemy import event

from karat.feedback.store import Store


class Sent:
    """Counts from now on; made of a store that nobody uses at the moment."""

    def __init__(self, store: Store) -> None:
        engine = store._engine
        engine.dispose()  # its connections are made anew, with a witness
        self.statements: list[str] = []
        """In their order; without BEGIN and COMMIT, which `transactions` counts."""
        self.transactions = 0
        """How many were begun."""
        event.listen(engine, "begin", self._begun)
        event.listen(engine, "connect", self._watch_sqlite if store.dialect == "sqlite" else self._watch_postgresql)
        with store.connection():  # so that what a new connection asks for once is not counted
            pass
        self.forget()

    def forget(self) -> None:
        """Start counting anew."""
        self.statements.clear()
        self.transactions = 0

    def _begun(self, _connection: Any) -> None:
        self.transactions += 1

    def _noted(self, statement: str) -> None:
        # SQLite also tells what a trigger does within a statement, as a comment
        if not statement.startswith(("BEGIN", "COMMIT", "ROLLBACK", "--")):
            self.statements.append(statement)

    def _watch_sqlite(self, connection: Any, _record: Any) -> None:
        connection.set_trace_callback(self._noted)

    def _watch_postgresql(self, connection: Any, _record: Any) -> None:
        noted = self._noted

        class Witness(connection.cursor_factory):
            def execute(self, query: Any, *rest: Any, **more: Any) -> Any:
                noted(str(query))
                return super().execute(query, *rest, **more)

            def executemany(self, query: Any, rows: Any, **more: Any) -> Any:
                rows = list(rows)
                for _ in rows:
                    noted(str(query))
                return super().executemany(query, rows, **more)

        connection.cursor_factory = Witness
